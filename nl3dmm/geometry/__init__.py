"""UV maps -> mesh: pure differentiable functions of cameras, meshes, UV maps and light."""
