"""What people look at: text, figures and the page."""
