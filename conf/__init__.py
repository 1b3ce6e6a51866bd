"""Hydra configs; a folder is a group. Installed as `compress_conf`, so that they are found from anywhere."""
