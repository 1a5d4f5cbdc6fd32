// Package release serves the files of releases, from a directory that an operator
// fills, to agents that upgrade. It trusts nothing of what it serves: agents
// check signatures by keys that their hosts trust, which the hub has none of.
package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"causeway/hub/conns"
	"causeway/protocol"
)

// Limits of the server. An agent fetches one file at a time.
const (
	maxConns     = 64
	maxPerNode   = 2
	maxAtOnce    = 16 // others are told to come again
	sendTimeout  = 10 * time.Minute
	headTimeout  = 10 * time.Second
	stopTimeout  = time.Second
	maxManifests = 1000
)

// Library is a directory with the files of any number of releases, as 'make package'
// writes them. Its methods may be called concurrently, and the directory may change
// meanwhile.
type Library struct{ dir string }

// Open returns the library in dir, which may be missing.
func Open(dir string) Library { return Library{dir} }

// Dir is the library's directory.
func (l Library) Dir() string { return l.dir }

// List returns the releases whose files are all there, the newest first, and what is
// wrong with others.
func (l Library) List() (out []protocol.Release, problems []error) {
	names, err := filepath.Glob(filepath.Join(l.dir, protocol.ReleaseName("*")))
	if err != nil {
		return nil, []error{err}
	}
	for _, name := range names[:min(len(names), maxManifests)] {
		r, err := l.read(filepath.Base(name))
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
			continue
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b protocol.Release) int { return protocol.CompareVersions(b.Version, a.Version) })
	return out, problems
}

// Find returns the release of that version, of the newest one if it is empty. The error
// says what there is.
func (l Library) Find(version string) (protocol.Release, error) {
	all, problems := l.List()
	if version == "" && len(all) > 0 {
		return all[0], nil
	}
	var have []string
	for _, r := range all {
		if r.Version == version {
			return r, nil
		}
		have = append(have, r.Version)
	}
	if version != "" {
		version = " " + version
	}
	err := fmt.Errorf("the hub has no release%s: put the files of 'make package' into %s", version, l.dir)
	if len(have) > 0 {
		err = fmt.Errorf("%w; it has %s", err, strings.Join(have, ", "))
	}
	if len(problems) > 0 {
		err = fmt.Errorf("%w; %w", err, problems[0])
	}
	return protocol.Release{}, err
}

// read reads a manifest and looks whether all that belongs to it is there.
func (l Library) read(name string) (protocol.Release, error) {
	f, err := os.Open(filepath.Join(l.dir, name))
	if err != nil {
		return protocol.Release{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, protocol.MaxRelease+1))
	if err != nil {
		return protocol.Release{}, err
	}
	r, err := protocol.ParseRelease(b)
	if err != nil {
		return protocol.Release{}, err
	}
	if protocol.ReleaseName(r.Version) != name {
		return protocol.Release{}, fmt.Errorf("it is of version %s, and has the name of another", r.Version)
	}
	if _, err := os.Stat(filepath.Join(l.dir, name+protocol.ReleaseSignature)); err != nil {
		return protocol.Release{}, errors.New("it is not signed: its file .sig is missing")
	}
	for _, f := range r.Files {
		st, err := os.Stat(filepath.Join(l.dir, f.Name))
		if err != nil {
			return protocol.Release{}, fmt.Errorf("%s is missing", f.Name)
		}
		if st.Size() != f.Size {
			return protocol.Release{}, fmt.Errorf("%s has %d bytes, not %d; copy it again", f.Name, st.Size(), f.Size)
		}
	}
	return r, nil
}

// Handler serves the files at protocol.ReleasePath, to read.
func (l Library) Handler() http.Handler {
	slots := make(chan struct{}, maxAtOnce)
	m := http.NewServeMux()
	m.HandleFunc("GET "+protocol.ReleasePath+"{name}", func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many fetch releases at once; try again", http.StatusServiceUnavailable)
			return
		}
		l.serve(w, r, r.PathValue("name"))
	})
	return m
}

// serve serves what belongs to a release and nothing else that may lie there.
func (l Library) serve(w http.ResponseWriter, r *http.Request, name string) {
	switch {
	case filepath.Base(name) != name || strings.HasPrefix(name, ".") || !strings.HasPrefix(name, "causeway"):
		http.NotFound(w, r)
		return
	case strings.HasSuffix(name, ".bin"), strings.HasSuffix(name, ".json"), strings.HasSuffix(name, ".json"+protocol.ReleaseSignature):
	default:
		http.NotFound(w, r)
		return
	}
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer root.Close()
	if st, err := root.Stat(name); err != nil || !st.Mode().IsRegular() {
		http.NotFound(w, r)
		return
	}
	f, err := root.Open(name)
	if err != nil {
		status := http.StatusNotFound
		if errors.Is(err, fs.ErrPermission) {
			status = http.StatusForbidden
		}
		http.Error(w, http.StatusText(status), status)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

// Serve answers on ln, inside the tunnel, which it closes, until ctx ends.
func (l Library) Serve(ctx context.Context, ln net.Listener) error {
	s := &http.Server{Handler: l.Handler(), ReadHeaderTimeout: headTimeout, ReadTimeout: headTimeout, WriteTimeout: sendTimeout, MaxHeaderBytes: 8 << 10,
		ErrorLog: stdlog.New(io.Discard, "", 0)}
	end := make(chan struct{})
	go func() {
		defer close(end)
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if s.Shutdown(sctx) != nil {
			s.Close()
		}
	}()
	err := s.Serve(conns.New(ln, maxConns, maxPerNode))
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil { // a hub that stops may close the listener first
		<-end
		return nil
	}
	return fmt.Errorf("serve releases: %w", err)
}
