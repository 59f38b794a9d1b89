"""What channels are worth: statistics of calibration images, and criteria."""
