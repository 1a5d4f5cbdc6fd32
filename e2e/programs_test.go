package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// postgres is the directory of PostgreSQL's programs.
type postgres string

// startPostgres starts PostgreSQL on a host. Whoever connects is let in: what lies between is what is tried.
func startPostgres(t *testing.T, h *lab.Host, dir string) postgres {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	require.NoError(t, err)
	require.NotEmpty(t, found, "PostgreSQL is not installed: make deps")
	p := postgres(filepath.Dir(found[len(found)-1]))
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.Chown(dir, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	data := filepath.Join(dir, "data")
	_, err = h.RunAs(within(t, time.Minute), lab.Nobody, p.program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all 0.0.0.0/0 trust\n"), 0o644))
	_, err = h.Start(lab.Program{Name: "postgres-" + h.Name, User: lab.Nobody, Args: []string{p.program("postgres"), "-D", data, "-c", "listen_addresses=*", "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "client_connection_check_interval=100ms"}})
	require.NoError(t, err)
	require.NoError(t, lab.Wait(step(t), "PostgreSQL", func(ctx context.Context) error {
		_, err := h.Run(ctx, p.psql("127.0.0.1", "select 1")...)
		return err
	}))
	return p
}

func (p postgres) program(name string) string { return filepath.Join(string(p), name) }

// psql are the arguments of a query.
func (p postgres) psql(host, query string) []string {
	return []string{p.program("psql"), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", host, "-c", query, "postgres"}
}

// startNginx starts nginx on port 8080 of a host, with a page that has this text. It returns the file with a line for each request.
func startNginx(t *testing.T, h *lab.Host, dir, text string) (access string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "html"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "html", "page"), []byte(text), 0o644))
	conf := fmt.Sprintf("daemon off; pid %[1]s/pid; error_log stderr;\nevents {}\nhttp { access_log %[1]s/access; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;\nserver { listen 8080; root %[1]s/html; } }\n", dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o644))
	_, err := h.Start(lab.Program{Name: "nginx-" + h.Name, Args: []string{"nginx", "-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf")}})
	require.NoError(t, err)
	return filepath.Join(dir, "access")
}
