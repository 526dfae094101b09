"""What several test files share: `from support.tools import settle`."""
