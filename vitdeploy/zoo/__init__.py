"""The ViTs that vitdeploy knows by name, and what a ViT costs."""
