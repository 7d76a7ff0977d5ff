"""Image -> latents -> UV maps: the networks."""
