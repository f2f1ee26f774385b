"""Training of both stages: pure steps, and the loop around them."""
