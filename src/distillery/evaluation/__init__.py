"""What a network is worth: its accuracy and calibration, and its cost."""
