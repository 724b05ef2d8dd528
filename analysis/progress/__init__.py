"""What a run shows while it goes on, and what it leaves when it is ended."""
