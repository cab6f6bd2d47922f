"""trained model → judged, load-proven artifact."""
