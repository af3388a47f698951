// The age of a panel's data, with a badge when it is stale. Hidden before the first update.

import { age } from "/static/age_mixin.js";

export default {
  mixins: [age],
  template: `<span class="ac-age" :class="{stale}"><template v-if="version"><b v-if="stale">stale</b> {{ age }} s ago</template></span>`,
};
