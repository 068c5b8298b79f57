//! What nothing needs, found by marking from the roots, and removed.
