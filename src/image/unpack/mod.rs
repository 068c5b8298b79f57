//! Layers to trees: the tar reader, and the extractor that works through directory descriptors alone.
