//! Bundles made from images: what config.json says, what the root holds, when an overlay goes away.
