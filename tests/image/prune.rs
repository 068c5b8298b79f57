//! What is removed, what is kept, and when the sweep is refused.
