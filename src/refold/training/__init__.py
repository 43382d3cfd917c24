"""From a model and rows to a trained model: the plan, the start, the loop, the evaluation."""
