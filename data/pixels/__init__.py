"""Work on pixels that is worth compiling, to the same bits as the plain way of data/images.py.

`bicubic.loops(height, width, side)` resizes as Pillow does.
"""
