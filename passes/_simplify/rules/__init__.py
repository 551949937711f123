"""Local rewrite rules of `remove-identities`, one file a family of ops."""
