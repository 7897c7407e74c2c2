"""Rules that manifests must keep."""
