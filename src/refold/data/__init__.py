"""From anything to tensors: sources, containers, the schema, corruptions; and files out again."""
