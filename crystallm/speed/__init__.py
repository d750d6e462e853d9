"""What the steps cost on this machine, beside a plain baseline of the same work, and how cost grows with the work."""
