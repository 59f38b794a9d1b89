"""The command line: `yolo-prune`, and the flag of `yolo`."""
