"""What a run leaves behind: records, page, pictures."""
