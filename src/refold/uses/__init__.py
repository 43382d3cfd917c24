"""What a trained model is for: completing rows, looking inside, classifying, drawing."""
