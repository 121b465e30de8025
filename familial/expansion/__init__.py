"""Growing a trained model into a larger one."""
