package admin

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What an agent says comes on as it says it, not at the end.
func TestPassOn(t *testing.T) {
	from, say := io.Pipe()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { passOn(w, from) }))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { say.Close() })
	lines := make(chan string)
	go func() {
		defer close(lines)
		resp, err := http.Get(srv.URL)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			lines <- s.Text()
		}
	}()
	for _, want := range []string{"one", "two"} {
		_, err := io.WriteString(say, want+"\n")
		require.NoError(t, err)
		select {
		case got, ok := <-lines:
			require.True(t, ok)
			require.Equal(t, want, got)
		case <-time.After(20 * time.Second):
			t.Fatal("the line is kept back")
		}
	}
	require.NoError(t, say.Close())
	_, more := <-lines
	require.False(t, more)
}
