"""What models are made of: mixer, attention, pointwise networks, and how they are computed."""
