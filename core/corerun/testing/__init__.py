"""Help for tests of plugins: a scripted provider, fixtures, and the contracts that plugins must fulfil."""
