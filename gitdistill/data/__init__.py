"""The data that comes with the project: `grammar` writes and checks captions, `glyphs` draws clips, `module` feeds both
to Lightning."""
