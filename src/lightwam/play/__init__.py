"""A live page on which a policy acts in its simulator, or along recorded episodes, and can be disturbed."""
