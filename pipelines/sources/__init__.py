"""Where results come from: finding cases in folders, archives and object stores."""
