"""What more than one method needs."""
