"""HTML pages, contact sheets, heat maps and charts."""
