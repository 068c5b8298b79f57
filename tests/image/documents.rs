//! Manifests, indexes, configurations and references: what is read, what is refused.
