"""Where configuration comes from: files now; the Kubernetes API and etcd are further sources of the same documents."""
