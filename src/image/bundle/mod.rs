//! Bundles: a root filesystem and a config.json made from an image.
