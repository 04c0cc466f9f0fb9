"""Pre-training without labels: what yields a new backbone, whose heads are dropped before it is trained to be compatible."""
