"""Hydra configs; a folder is a group. Installed as the package `compress_conf`, so that they are found from anywhere."""
