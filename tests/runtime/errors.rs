//! Bad input: one clear line that names the field and the rule, exit code 1, and nothing left.
