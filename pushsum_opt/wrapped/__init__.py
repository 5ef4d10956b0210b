"""What PushSumOptimizer knows of the optimizer and the model that it wraps, one matter per file."""
