"""Importance of channels: statistics of calibration images, and criteria."""
