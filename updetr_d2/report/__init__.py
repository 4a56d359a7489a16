"""HTML pages that hold everything they show: what a run was, what came of it, and what it does wrong."""
