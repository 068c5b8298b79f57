//! A user namespace for an ordinary user: the ids that files need, and the mounts.
