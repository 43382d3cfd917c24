"""What a trained model is for: judging rows, looking inside."""
