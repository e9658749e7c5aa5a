"""The main job on real data: train, convert, save and load again, draw. Run it by ``python -m torch_ext.demo``."""
