"""What PushSumOptimizer does with the optimizer and the model that it wraps, one matter per file."""
