package join

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// A hub that is busy for a moment is asked again, with the same body; one that stays so is told
// from one that is none.
func TestBusyIsAskedAgain(t *testing.T) {
	tries := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if tries++; tries < 2 || string(b) != "join" {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.Write([]byte("done"))
	}))
	defer s.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, bytes.NewReader([]byte("join")))
	require.NoError(t, err)
	resp, err := do(s.Client(), r)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, 2, tries)
	require.ErrorContains(t, errBusy("hub:443", 429), "try again with the same token")
}
