"""What a shared cluster asks of a run: one owner at a time, signals, requeueing, launching on several processes."""
