"""From result rows to statistics, tables, curves, pictures and films."""
