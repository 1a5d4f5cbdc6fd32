package service

import (
	"os"
	"path/filepath"
)

// Credential is the path of a secret that the manager hands over under a name
// (LoadCredential=); empty if it does not.
func Credential(name string) string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}
