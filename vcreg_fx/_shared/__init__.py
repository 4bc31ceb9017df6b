"""What several rooms use and none of them owns: a file a concept, above nothing but torch."""
