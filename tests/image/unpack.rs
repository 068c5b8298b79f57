//! Layers to trees: every rule of the image specification, seen from outside.
